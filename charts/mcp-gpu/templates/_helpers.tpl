{{/* Name of what the chart creates. 52 characters leave room for a suffix within the 63 of a label. */}}
{{- define "mcp-gpu.fullname" -}}
{{- $name := printf "%s-%s" .Release.Name .Chart.Name -}}
{{- if .Values.fullnameOverride -}}
{{- $name = .Values.fullnameOverride -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- $name = .Release.Name -}}
{{- end -}}
{{- $name = $name | trunc 52 | trimSuffix "-" -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) -}}
{{- fail (printf "%s cannot name a Service, which takes lower-case letters, digits and dashes, a letter first: set fullnameOverride" $name) -}}
{{- end -}}
{{- $name -}}
{{- end }}

{{/* Labels that select; they never change over a release's life. Takes (list . COMPONENT). */}}
{{- define "mcp-gpu.selectorLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ $root.Chart.Name }}
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* All labels of an object. Takes (list . COMPONENT). */}}
{{- define "mcp-gpu.labels" -}}
{{- $root := index . 0 -}}
{{ include "mcp-gpu.selectorLabels" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* The label selector by which the gateway finds agents, their Service and its slices. */}}
{{- define "mcp-gpu.agentSelector" -}}
app.kubernetes.io/name={{ .Chart.Name }},app.kubernetes.io/component=agent,app.kubernetes.io/instance={{ .Release.Name }}
{{- end }}

{{- define "mcp-gpu.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* The paths a gateway may take, as MCP_GPU_TRANSPORTS has them. */}}
{{- define "mcp-gpu.transports" -}}
{{- $routing := .Values.gateway.routingMode -}}
{{- if eq .Values.transport.mode "http" -}}
{{- eq $routing "auto" | ternary "http,portforward,exec" $routing -}}
{{- else if has $routing (list "http" "portforward") -}}
{{- fail (printf "transport.mode=stdio opens no port, so gateway.routingMode=%s reaches no agent: set gateway.routingMode to auto or exec" $routing) -}}
{{- else -}}
exec
{{- end -}}
{{- end }}

{{/* Names of a Service that clients may put into the Host header. Takes (list . SERVICE). */}}
{{- define "mcp-gpu.hosts" -}}
{{- $root := index . 0 -}}
{{- $name := index . 1 -}}
{{- $inNamespace := printf "%s.%s" $name $root.Release.Namespace -}}
{{- $qualified := printf "%s.svc.%s" $inNamespace $root.Values.clusterDomain -}}
{{- list $name $inNamespace (printf "%s.svc" $inNamespace) $qualified (printf "*.%s" $qualified) | join "," -}}
{{- end }}

{{/* What every pod of the chart has in common, as far as it is the same text. */}}
{{- define "mcp-gpu.podDefaults" -}}
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "mcp-gpu.containerImage" -}}
image: {{ include "mcp-gpu.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{- define "mcp-gpu.containerDefaults" -}}
{{ include "mcp-gpu.containerImage" . }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{- define "mcp-gpu.logEnv" -}}
- name: MCP_GPU_LOG_LEVEL
  value: {{ .Values.log.level }}
- name: MCP_GPU_LOG_FORMAT
  value: {{ .Values.log.format }}
{{- end }}

{{/* How long a pod that is to stop may take. After the delay calls in flight have 4 s, and what still
hangs then two more. Takes the delay in seconds. */}}
{{- define "mcp-gpu.gracePeriod" -}}
terminationGracePeriodSeconds: {{ add . 15 }}
{{- end }}

{{/* Probes of the port. Takes SCHEME. */}}
{{- define "mcp-gpu.httpProbes" -}}
readinessProbe:
  httpGet:
    path: /readyz
    port: mcp
    scheme: {{ . }}
  periodSeconds: 5
  timeoutSeconds: 3
livenessProbe:
  httpGet:
    path: /healthz
    port: mcp
    scheme: {{ . }}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- end }}

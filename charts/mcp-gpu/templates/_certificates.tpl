{{/* Certificates of the agents and of the gateway: whether there is one, its names, where it lies. */}}

{{/* Non-empty where the gateway serves HTTPS itself. Agents do wherever they want tokens. */}}
{{- define "mcp-gpu.gatewayTls" -}}
{{- if and .Values.gateway.enabled (ne .Values.gateway.tls.source "none") -}}true{{- end -}}
{{- end }}

{{/* The Secret that a side's certificate lies in. What cert-manager fills has a name of its own, so
that Helm and it never claim the same one. Takes (list . COMPONENT). */}}
{{- define "mcp-gpu.tlsSecret" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $tls := (index $root.Values $component).tls -}}
{{- $prefix := printf "%s-%s" (include "mcp-gpu.fullname" $root) $component -}}
{{- if eq $tls.source "secret" -}}
{{- required (printf "%s.tls.source=secret needs %s.tls.existingSecret: a Secret with tls.crt, tls.key and ca.crt" $component $component) $tls.existingSecret -}}
{{- else if eq $tls.source "certManager" -}}
{{ $prefix }}-issued
{{- else -}}
{{ $prefix }}-tls
{{- end -}}
{{- end }}

{{/* The name that agents' certificates are checked for where they are called by address. */}}
{{- define "mcp-gpu.agentServerName" -}}
{{ include "mcp-gpu.fullname" . }}-agent.{{ .Release.Namespace }}.svc
{{- end }}

{{/* Names of a side's certificate, as a JSON object of dns and ip. Takes (list . COMPONENT). */}}
{{- define "mcp-gpu.certificateNames" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- if eq $component "agent" -}}
{{- $name := include "mcp-gpu.agentServerName" $root -}}
{{- $qualified := printf "%s.%s" $name $root.Values.clusterDomain -}}
{{- dict "dns" (list $name $qualified (printf "*.%s" $qualified)) "ip" list | toJson -}}
{{- else -}}
{{- /* localhost and its addresses: the near end of a port-forward. */ -}}
{{- $dns := list -}}
{{- $ip := list "127.0.0.1" "::1" -}}
{{- range append (include "mcp-gpu.gatewayHosts" $root | splitList ",") "localhost" -}}
{{- if regexMatch "^([0-9]{1,3}\\.){3}[0-9]{1,3}$|:" . }}{{ $ip = append $ip . }}{{ else }}{{ $dns = append $dns . }}{{ end -}}
{{- end -}}
{{- dict "dns" (without $dns "*" | uniq) "ip" (uniq $ip) | toJson -}}
{{- end -}}
{{- end }}

{{- define "mcp-gpu.tlsEnv" -}}
- name: MCP_GPU_TLS_CERT_FILE
  value: /etc/mcp-gpu/tls/tls.crt
- name: MCP_GPU_TLS_KEY_FILE
  value: /etc/mcp-gpu/tls/tls.key
{{- end }}

{{- define "mcp-gpu.tlsMount" -}}
- name: tls
  mountPath: /etc/mcp-gpu/tls
  readOnly: true
{{- end }}

{{/* Takes (list . COMPONENT). */}}
{{- define "mcp-gpu.tlsVolume" -}}
- name: tls
  secret:
    secretName: {{ include "mcp-gpu.tlsSecret" . | quote }}
    defaultMode: 0440
    items:
      - {key: tls.crt, path: tls.crt}
      - {key: tls.key, path: tls.key}
{{- end }}

{{/* Whole seconds since an object of ours was made, as it says itself. Takes the object. */}}
{{- define "mcp-gpu.age" -}}
{{- $made := dig "metadata" "annotations" "mcp-gpu/issued-at" "0" . -}}
{{- sub (now | unixEpoch | int64) ($made | int64) -}}
{{- end }}

{{/* A Secret with a certificate. Takes (list . COMPONENT NAME ANNOTATIONS DATA). */}}
{{- define "mcp-gpu.certificateSecret" -}}
{{- $root := index . 0 -}}
apiVersion: v1
kind: Secret
metadata:
  name: {{ index . 2 }}
  namespace: {{ $root.Release.Namespace | quote }}
  labels:
    {{- include "mcp-gpu.labels" (list $root (index . 1)) | nindent 4 }}
  annotations:
    {{- toYaml (index . 3) | nindent 4 }}
type: kubernetes.io/tls
data:
  {{- toYaml (index . 4) | nindent 2 }}
{{- end }}

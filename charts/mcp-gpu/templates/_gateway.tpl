{{/* What the gateway's pod and the pre-flight's share: the pre-flight is placed and labelled as the
gateway is, so that it meets what the gateway meets. */}}

{{/* Non-empty where agents are asked at their port, and take a token there. */}}
{{- define "mcp-gpu.showsToken" -}}
{{- $paths := splitList "," (include "mcp-gpu.transports" .) -}}
{{- if and (include "mcp-gpu.agentTokens" .) (or (has "http" $paths) (has "portforward" $paths)) -}}true{{- end -}}
{{- end }}

{{/* Names by which clients may call: of the Service, and those that values name. */}}
{{- define "mcp-gpu.gatewayHosts" -}}
{{- $gateway := .Values.gateway -}}
{{- $given := $gateway.allowedHosts -}}
{{- if $gateway.ingress.enabled }}{{ $given = concat $given $gateway.ingress.hosts }}{{ end -}}
{{- if $gateway.httpRoute.enabled }}{{ $given = concat $given $gateway.httpRoute.hostnames }}{{ end -}}
{{- if include "mcp-gpu.oauth" . }}{{ $given = append $given (urlParse .Values.auth.oauth.resource).hostname }}{{ end -}}
{{- prepend (uniq (compact $given)) (include "mcp-gpu.hosts" (list . (printf "%s-gateway" (include "mcp-gpu.fullname" .)))) | join "," -}}
{{- end }}

{{/* How much is taken on at once. */}}
{{- define "mcp-gpu.limitsEnv" -}}
{{- with .Values.gateway.limits -}}
- name: MCP_GPU_MAX_REQUESTS_INFLIGHT
  value: {{ .requestsInflight | quote }}
- name: MCP_GPU_MAX_REQUESTS_INFLIGHT_PER_CALLER
  value: {{ .requestsInflightPerCaller | quote }}
- name: MCP_GPU_MAX_REQUESTS_WAITING
  value: {{ .requestsWaiting | quote }}
- name: MCP_GPU_REQUEST_WAIT_SECONDS
  value: {{ .requestWaitSeconds | quote }}
- name: MCP_GPU_CALLER_QPS
  value: {{ .callerQPS | quote }}
- name: MCP_GPU_CALLER_BURST
  value: {{ .callerBurst | quote }}
- name: MCP_GPU_MAX_STREAMS
  value: {{ .streams | quote }}
{{- end }}
{{- end }}

{{/* The tools that are not served. What explains a failure reads mostly by rights that other tools
need too, and RBAC cannot tell them apart. */}}
{{- define "mcp-gpu.withoutTools" -}}
{{- $given := .Values.gateway.withoutTools -}}
{{- if not .Values.rbac.failures }}{{ $given = concat $given (list "explain_failure" "get_incident_report") }}{{ end -}}
{{- uniq $given | join "," -}}
{{- end }}

{{/* How agents are found and reached. */}}
{{- define "mcp-gpu.reachEnv" -}}
{{- $transports := include "mcp-gpu.transports" . -}}
- name: MCP_GPU_NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
- name: MCP_GPU_POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: MCP_GPU_AGENT_SELECTOR
  value: {{ include "mcp-gpu.agentSelector" . | quote }}
- name: MCP_GPU_TRANSPORTS
  value: {{ $transports | quote }}
{{- if has "http" (splitList "," $transports) }}
- name: MCP_GPU_AGENT_ADDRESS
  value: {{ .Values.gateway.agentAddress }}
- name: MCP_GPU_CLUSTER_DOMAIN
  value: {{ .Values.clusterDomain | quote }}
{{- end }}
{{- if include "mcp-gpu.showsToken" . }}
- name: MCP_GPU_AGENT_SCHEME
  value: https
- name: MCP_GPU_AGENT_CA_FILE
  value: /etc/mcp-gpu/agents/ca.crt
- name: MCP_GPU_AGENT_SERVER_NAME
  value: {{ include "mcp-gpu.agentServerName" . | quote }}
- name: MCP_GPU_AGENT_TOKEN_FILE
  value: /etc/mcp-gpu/agents/token
{{- end }}
{{ include "mcp-gpu.logEnv" . }}
{{- with .Values.gateway.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "mcp-gpu.reachMounts" -}}
{{- if include "mcp-gpu.showsToken" . -}}
- name: agents
  mountPath: /etc/mcp-gpu/agents
  readOnly: true
{{- end -}}
{{- end }}

{{/* What is shown to agents, and what theirs is checked by. The kubelet renews the token. */}}
{{- define "mcp-gpu.reachVolumes" -}}
{{- if include "mcp-gpu.showsToken" . -}}
- name: agents
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken:
          audience: {{ include "mcp-gpu.agentAudience" . | quote }}
          expirationSeconds: 3600
          path: token
      - secret:
          name: {{ include "mcp-gpu.tlsSecret" (list . "agent") | quote }}
          items:
            - {key: ca.crt, path: ca.crt}
{{- end -}}
{{- end }}

{{- define "mcp-gpu.gatewayPlacement" -}}
{{- with .Values.gateway.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.gateway.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.gateway.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Who may call, at both ports: the tokens that are believed, and what each pod needs for it. */}}

{{/* Non-empty where callers of the gateway show Kubernetes tokens. */}}
{{- define "mcp-gpu.kubernetesTokens" -}}
{{- if and .Values.gateway.enabled (eq .Values.auth.mode "token") .Values.auth.kubernetes.enabled -}}true{{- end -}}
{{- end }}

{{/* Non-empty where they may show a static one. */}}
{{- define "mcp-gpu.staticTokens" -}}
{{- if and .Values.gateway.enabled (eq .Values.auth.mode "token") .Values.auth.static.enabled -}}true{{- end -}}
{{- end }}

{{/* Non-empty where they may show an access token of an authorization server. */}}
{{- define "mcp-gpu.oauth" -}}
{{- if and .Values.gateway.enabled (eq .Values.auth.mode "token") .Values.auth.oauth.issuer -}}true{{- end -}}
{{- end }}

{{/* Non-empty where RBAC decides which tools a caller may call: of those whose token names them. */}}
{{- define "mcp-gpu.accessReview" -}}
{{- if and (or (include "mcp-gpu.kubernetesTokens" .) (include "mcp-gpu.oauth" .)) .Values.auth.accessReview -}}true{{- end -}}
{{- end }}

{{/* Non-empty where agents have a port, and want a token there. */}}
{{- define "mcp-gpu.agentTokens" -}}
{{- if and (eq .Values.auth.mode "token") (eq .Values.transport.mode "http") -}}true{{- end -}}
{{- end }}

{{/* Non-empty where an account for clients is of use: at the gateway, or, without one, at agents. */}}
{{- define "mcp-gpu.clientAccount" -}}
{{- if or (include "mcp-gpu.kubernetesTokens" .) (and (not .Values.gateway.enabled) (include "mcp-gpu.agentTokens" .)) -}}true{{- end -}}
{{- end }}

{{/* Whose tokens agents take: the gateway's, or, without one, clients'. */}}
{{- define "mcp-gpu.agentCaller" -}}
{{ include "mcp-gpu.fullname" . }}-{{ .Values.gateway.enabled | ternary "gateway" "client" }}
{{- end }}

{{- define "mcp-gpu.audience" -}}
{{- .Values.auth.kubernetes.audience | default (printf "%s.%s" (include "mcp-gpu.fullname" .) .Release.Namespace) -}}
{{- end }}

{{- define "mcp-gpu.agentAudience" -}}
{{- .Values.auth.agents.audience | default (printf "%s-agent.%s" (include "mcp-gpu.fullname" .) .Release.Namespace) -}}
{{- end }}

{{- define "mcp-gpu.secretName" -}}
{{- .Values.auth.static.existingSecret | default (printf "%s-auth" (include "mcp-gpu.fullname" .)) -}}
{{- end }}

{{/* Whom the gateway lets in. */}}
{{- define "mcp-gpu.gatewayAccessEnv" -}}
{{- $auth := .Values.auth -}}
{{- if eq $auth.mode "none" -}}
- name: MCP_GPU_ALLOW_ANONYMOUS
  value: "true"
{{- else if not (or $auth.kubernetes.enabled $auth.static.enabled $auth.oauth.issuer) -}}
{{- fail "auth.mode=token, and no kind of token is believed: set auth.kubernetes.enabled, auth.static.enabled or auth.oauth.issuer; auth.mode=none lets everyone in" -}}
{{- end -}}
{{- if and (or $auth.oauth.resource $auth.oauth.scopes) (not $auth.oauth.issuer) -}}
{{- fail "auth.oauth.resource and auth.oauth.scopes are of no use without auth.oauth.issuer: set that to the authorization server's URL" -}}
{{- end -}}
{{- if include "mcp-gpu.staticTokens" . }}
- name: MCP_GPU_TOKEN_FILE
  value: /etc/mcp-gpu/auth/client-token
{{- end }}
{{- if include "mcp-gpu.kubernetesTokens" . }}
- name: MCP_GPU_KUBERNETES_TOKENS
  value: review
- name: MCP_GPU_TOKEN_AUDIENCES
  value: {{ include "mcp-gpu.audience" . | quote }}
{{- end }}
{{- if include "mcp-gpu.accessReview" . }}
- name: MCP_GPU_ACCESS_REVIEW
  value: "true"
{{- end }}
{{- if include "mcp-gpu.oauth" . }}
- name: MCP_GPU_OAUTH_ISSUER
  value: {{ $auth.oauth.issuer | quote }}
- name: MCP_GPU_OAUTH_RESOURCE
  value: {{ required "auth.oauth.resource has to be the gateway's URL as clients call it, such as https://gpu.example.org/mcp: access tokens are made for it" $auth.oauth.resource | quote }}
{{- with $auth.oauth.scopes }}
- name: MCP_GPU_OAUTH_SCOPES
  value: {{ join "," . | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* Whom agents let in: their port is open to the gateway's account alone. */}}
{{- define "mcp-gpu.agentAccessEnv" -}}
{{- if include "mcp-gpu.agentTokens" . -}}
- name: MCP_GPU_KUBERNETES_TOKENS
  value: {{ .Values.auth.agents.verify }}
- name: MCP_GPU_TOKEN_AUDIENCES
  value: {{ include "mcp-gpu.agentAudience" . | quote }}
- name: MCP_GPU_TOKEN_SUBJECTS
  value: {{ printf "system:serviceaccount:%s:%s" .Release.Namespace (include "mcp-gpu.agentCaller" .) | quote }}
{{ include "mcp-gpu.tlsEnv" . }}
{{- else if eq .Values.transport.mode "http" -}}
- name: MCP_GPU_ALLOW_ANONYMOUS
  value: "true"
{{- end -}}
{{- end }}

{{- define "mcp-gpu.agentAccessMounts" -}}
{{- if include "mcp-gpu.agentTokens" . -}}
{{ include "mcp-gpu.tlsMount" . }}
{{- end -}}
{{- end }}

{{- define "mcp-gpu.agentAccessVolumes" -}}
{{- if include "mcp-gpu.agentTokens" . -}}
{{ include "mcp-gpu.tlsVolume" (list . "agent") }}
{{- end -}}
{{- end }}

{{/* Clients' static tokens, in a file of the key's name. */}}
{{- define "mcp-gpu.staticVolume" -}}
- name: auth
  secret:
    secretName: {{ include "mcp-gpu.secretName" . | quote }}
    defaultMode: 0440
    items:
      - {key: client-token, path: client-token}
{{- end }}

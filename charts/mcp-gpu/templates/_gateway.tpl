{{/* What the gateway's pod and the pre-flight's share: the pre-flight is placed and labelled as the
gateway is, so that it meets what the gateway meets. */}}

{{/* Non-empty where agents are asked at their port, and take a token there. */}}
{{- define "mcp-gpu.showsToken" -}}
{{- $paths := splitList "," (include "mcp-gpu.transports" .) -}}
{{- if and (eq .Values.auth.mode "token") (or (has "http" $paths) (has "portforward" $paths)) -}}true{{- end -}}
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
  value: {{ .Values.clusterDomain }}
{{- end }}
{{- if include "mcp-gpu.showsToken" . }}
- name: MCP_GPU_AGENT_TOKEN_FILE
  value: /etc/mcp-gpu/auth/agent-token
{{- end }}
{{ include "mcp-gpu.logEnv" . }}
{{- with .Values.gateway.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "mcp-gpu.authMount" -}}
volumeMounts:
  - name: auth
    mountPath: /etc/mcp-gpu/auth
    readOnly: true
{{- end }}

{{/* The tokens, each in a file of its key's name. Takes (list . KEYS). */}}
{{- define "mcp-gpu.authVolume" -}}
volumes:
  - name: auth
    secret:
      secretName: {{ include "mcp-gpu.secretName" (index . 0) }}
      defaultMode: 0440
      items:
        {{- range index . 1 }}
        - key: {{ . }}
          path: {{ . }}
        {{- end }}
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

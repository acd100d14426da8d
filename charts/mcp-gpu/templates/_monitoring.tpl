{{/* How Prometheus scrapes a side, as an endpoint of its operator's monitors.
Takes (list . COMPONENT MONITOR), the last of monitoring.podMonitor and monitoring.serviceMonitor. */}}
{{- define "mcp-gpu.scrape" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $agent := eq $component "agent" -}}
port: mcp
path: /metrics
interval: {{ (index . 2).interval }}
{{- if $agent | ternary (include "mcp-gpu.agentTokens" $root) (include "mcp-gpu.gatewayTls" $root) }}
scheme: https
tlsConfig:
  ca:
    secret:
      name: {{ include "mcp-gpu.tlsSecret" (list $root $component) | quote }}
      key: ca.crt
  serverName: {{ $agent | ternary (include "mcp-gpu.agentServerName" $root) (printf "%s-gateway.%s.svc" (include "mcp-gpu.fullname" $root) $root.Release.Namespace) }}
{{- else }}
scheme: http
{{- end }}
{{- if $agent }}
relabelings:
  - sourceLabels: [__meta_kubernetes_pod_node_name]
    targetLabel: node
{{- end }}
{{- end }}

{{/* The sides that have a port, as JSON. */}}
{{- define "mcp-gpu.scraped" -}}
{{- $sides := list -}}
{{- if eq .Values.transport.mode "http" }}{{ $sides = append $sides "agent" }}{{ end -}}
{{- if .Values.gateway.enabled }}{{ $sides = append $sides "gateway" }}{{ end -}}
{{- toJson $sides -}}
{{- end }}

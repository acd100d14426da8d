{{/* What an agent's pod is made of beside what the gateway's has too: the way to the GPUs, and what it
may look at on its node. */}}

{{/* gpu.access as it is in effect: simulated GPUs need no way to real ones. */}}
{{- define "mcp-gpu.gpuAccess" -}}
{{- .Values.simulate.enabled | ternary "none" .Values.gpu.access -}}
{{- end }}

{{/* Non-empty where NVIDIA's container toolkit makes the container. */}}
{{- define "mcp-gpu.asksToolkit" -}}
{{- if has (include "mcp-gpu.gpuAccess" .) (list "runtimeClass" "cdi" "volumeMounts") -}}true{{- end -}}
{{- end }}

{{/* The runtime of agents' pods, as a JSON object: class, the RuntimeClass, empty for the nodes'
default runtime; nodes, empty where values say which nodes agents run on, or the runtime is that of
all, else "labelled" for the nodes with GPUs alone and "none" where no node is known to have any. A
pod whose RuntimeClass its node's runtime does not know never starts, and nothing keeps it off. */}}
{{- define "mcp-gpu.runtime" -}}
{{- $class := "" -}}
{{- $nodes := "" -}}
{{- if include "mcp-gpu.asksToolkit" . -}}
{{- $class = .Values.gpu.runtimeClassName -}}
{{- if eq $class "auto" -}}
{{- $class = "" -}}
{{- if lookup "node.k8s.io/v1" "RuntimeClass" "" "nvidia" -}}
{{- if or .Values.agent.affinity (omit (.Values.agent.nodeSelector | default dict) "kubernetes.io/os") -}}
{{- $class = "nvidia" -}}
{{- else -}}
{{- $nodes = "none" -}}
{{- range (lookup "v1" "Node" "" "").items -}}
{{- if eq (dig "metadata" "labels" "nvidia.com/gpu.present" "" .) "true" -}}
{{- $class = "nvidia" -}}
{{- $nodes = "labelled" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- dict "class" $class "nodes" $nodes | toJson -}}
{{- end }}

{{/* agent.privileges as a number, 0 for unprivileged, and as much as xidAnalysis wants. */}}
{{- define "mcp-gpu.agentLevel" -}}
{{- $levels := dict "unprivileged" 0 "root" 1 "kernelLog" 2 "processes" 3 "admin" 4 -}}
{{- max (get $levels .Values.agent.privileges) (.Values.xidAnalysis.enabled | ternary 2 0) -}}
{{- end }}

{{/* Non-empty where agents are on their nodes' own network. */}}
{{- define "mcp-gpu.agentHostNetwork" -}}
{{- if .Values.agent.hostNetwork -}}
{{- if ne .Values.transport.mode "http" -}}
{{- fail "agent.hostNetwork puts the agents' port on their nodes' addresses, but transport.mode=stdio opens none: set agent.hostNetwork=false" -}}
{{- else if ne .Values.auth.mode "token" -}}
{{- fail "agent.hostNetwork opens the agents' port to everyone who reaches a node, and network policies do not hold there: set auth.mode=token, by which agents serve TLS and ask for a token, or agent.hostNetwork=false" -}}
{{- end -}}
true
{{- end -}}
{{- end }}

{{/* The node's folder for the timeline; empty: none. */}}
{{- define "mcp-gpu.recorderPath" -}}
{{- with .Values.agent.recorder.hostPath -}}
{{- if lt (include "mcp-gpu.agentLevel" $ | int) 1 -}}
{{- fail "agent.recorder.hostPath is made by the kubelet for root, and agent.privileges=unprivileged is not root: set agent.privileges=root or more, or agent.recorder.hostPath=\"\"" -}}
{{- end -}}
{{ . }}
{{- end -}}
{{- end }}

{{/* Two pods cannot have the same port of a node, so there the old one goes first. */}}
{{- define "mcp-gpu.agentUpdateStrategy" -}}
{{- $strategy := .Values.agent.updateStrategy -}}
{{- if and (include "mcp-gpu.agentHostNetwork" .) (eq $strategy.type "RollingUpdate") -}}
{{- $unavailable := dig "rollingUpdate" "maxUnavailable" 0 $strategy -}}
{{- if has ($unavailable | toString) (list "0" "0%") -}}{{- $unavailable = 1 -}}{{- end -}}
type: RollingUpdate
rollingUpdate: {maxSurge: 0, maxUnavailable: {{ $unavailable }}}
{{- else -}}
{{ toYaml $strategy }}
{{- end -}}
{{- end }}

{{- define "mcp-gpu.agentSecurityContext" -}}
{{- $level := include "mcp-gpu.agentLevel" . | int -}}
{{- $capabilities := list -}}
{{- if ge $level 2 }}{{ $capabilities = append $capabilities "SYSLOG" }}{{ end -}}
{{- if ge $level 4 }}{{ $capabilities = append $capabilities "SYS_ADMIN" }}{{ end -}}
securityContext:
  readOnlyRootFilesystem: true
  {{- if ge $level 1 }}
  runAsNonRoot: false
  runAsUser: 0
  runAsGroup: 0
  {{- end }}
  {{- if eq (include "mcp-gpu.gpuAccess" .) "hostDriver" }}
  # Nothing less has the node's device files without a runtime that adds them.
  privileged: true
  {{- else }}
  {{- if lt $level 4 }}
  allowPrivilegeEscalation: false
  {{- end }}
  capabilities:
    drop: [ALL]
    {{- with $capabilities }}
    add: {{ toJson . }}
    {{- end }}
  {{- end }}
{{- end }}

{{- define "mcp-gpu.gpuEnv" -}}
{{- $access := include "mcp-gpu.gpuAccess" . -}}
- name: MCP_GPU_GPU_ACCESS
  value: {{ $access }}
{{- if eq $access "runtimeClass" }}
- name: NVIDIA_VISIBLE_DEVICES
  value: all
{{- else if eq $access "cdi" }}
- name: NVIDIA_VISIBLE_DEVICES
  value: management.nvidia.com/gpu=all
{{- else if eq $access "hostDriver" }}
- name: MCP_GPU_NVML_LIBRARY
  value: {{ printf "/host/driver/%s" .Values.gpu.hostDriver.library }}
{{- end }}
{{- if has $access (list "runtimeClass" "volumeMounts") }}
- name: NVIDIA_DRIVER_CAPABILITIES
  value: utility
{{- if ge (include "mcp-gpu.agentLevel" . | int) 4 }}
# Read by the toolkit in its legacy mode alone, and refused there without CAP_SYS_ADMIN. In CDI mode
# /dev/nvidia-caps comes with the devices for management (gpu.access=cdi).
- name: NVIDIA_MIG_MONITOR_DEVICES
  value: all
{{- end }}
{{- end }}
{{- with .Values.agent.expectedGpus }}
- name: MCP_GPU_EXPECTED_GPUS
  value: {{ . | quote }}
{{- end }}
{{- if include "mcp-gpu.recorderPath" . }}
- name: MCP_GPU_RECORDER_DIRECTORY
  value: /var/lib/mcp-gpu
{{- end }}
{{- end }}

{{/* Folders of the node in which the agent finds its journal. */}}
{{- define "mcp-gpu.journalFolders" -}}
{{- ge (include "mcp-gpu.agentLevel" . | int) 2 | ternary .Values.agent.journalFolders list | toJson -}}
{{- end }}

{{/* Folders of the kubelet in which the agent finds who holds GPUs. */}}
{{- define "mcp-gpu.kubeletFolders" -}}
{{- ge (include "mcp-gpu.agentLevel" . | int) 1 | ternary .Values.agent.kubeletFolders list | toJson -}}
{{- end }}

{{- define "mcp-gpu.nodeMounts" -}}
{{- $access := include "mcp-gpu.gpuAccess" . -}}
{{- if eq $access "volumeMounts" }}
- name: all-gpus
  mountPath: /var/run/nvidia-container-devices/all
  readOnly: true
{{- else if eq $access "hostDriver" }}
- name: driver
  mountPath: /host/driver
  readOnly: true
  # The operator's driver is a mount of its own, which may come later than this pod.
  mountPropagation: HostToContainer
{{- end }}
{{- range include "mcp-gpu.kubeletFolders" . | fromJsonArray }}
- name: kubelet-{{ . }}
  mountPath: /var/lib/kubelet/{{ . }}
  readOnly: true
{{- end }}
{{- range include "mcp-gpu.journalFolders" . | fromJsonArray }}
- name: {{ . | trimPrefix "/" | replace "/" "-" }}
  mountPath: /host{{ . }}
  readOnly: true
{{- end }}
{{- if include "mcp-gpu.recorderPath" . }}
- name: recorder
  mountPath: /var/lib/mcp-gpu
{{- end }}
{{- end }}

{{- define "mcp-gpu.nodeVolumes" -}}
{{- $access := include "mcp-gpu.gpuAccess" . -}}
{{- if eq $access "volumeMounts" }}
# A list of devices as the toolkit reads it: the mount's name is what counts.
- name: all-gpus
  hostPath:
    path: /dev/null
    type: CharDevice
{{- else if eq $access "hostDriver" }}
# Made where it is missing, or agents would not start on nodes without GPUs.
- name: driver
  hostPath:
    path: {{ .Values.gpu.hostDriver.root }}
    type: DirectoryOrCreate
{{- end }}
{{- $kubelet := .Values.agent.kubeletDirectory }}
{{- range include "mcp-gpu.kubeletFolders" . | fromJsonArray }}
# Whole: a kubelet that restarts makes its files anew. Made where it is missing, or agents would not
# start where the kubelet keeps it elsewhere.
- name: kubelet-{{ . }}
  hostPath:
    path: {{ $kubelet }}/{{ . }}
    type: DirectoryOrCreate
{{- end }}
{{- range include "mcp-gpu.journalFolders" . | fromJsonArray }}
- name: {{ . | trimPrefix "/" | replace "/" "-" }}
  hostPath:
    path: {{ . }}
    # What is made below /run is gone with the next boot. Below /var a new folder would make journald
    # write there for good.
    type: {{ hasPrefix "/run/" . | ternary "DirectoryOrCreate" "Directory" }}
{{- end }}
{{- with include "mcp-gpu.recorderPath" . }}
- name: recorder
  hostPath:
    path: {{ . | quote }}
    type: DirectoryOrCreate
{{- end }}
{{- end }}

{{- define "sidegate.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "sidegate.fullname" -}}
{{- $name := include "sidegate.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "sidegate.selectorLabels" -}}
app.kubernetes.io/name: {{ include "sidegate.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "sidegate.labels" -}}
{{ include "sidegate.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "sidegate.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "sidegate.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "sidegate.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end }}
{{- end }}

{{- define "sidegate.hook" -}}
{{ .Values.host.binDir }}/sidegate-oci-hook
{{- end }}

{{- define "sidegate.stateDir" -}}
{{ .Values.host.bpffs }}/sidegate
{{- end }}

{{/* Where the relay's socket is. The hook looks there on the node: so it is no value. */}}
{{- define "sidegate.runDir" -}}
/run/sidegate
{{- end }}

{{/* What install, the plugin and the relay do to a node needs all of it, and the node's own cgroup namespace, which containerd and
     CRI-O give privileged containers only. */}}
{{- define "sidegate.securityContext" -}}
securityContext:
  privileged: true
  readOnlyRootFilesystem: true
{{- end }}

{{/* The node's file systems, at the node's own paths. */}}
{{- define "sidegate.nodeMounts" -}}
- name: bpffs
  mountPath: {{ .Values.host.bpffs }}
  mountPropagation: HostToContainer
- name: cgroup
  mountPath: {{ .Values.host.cgroup }}
  mountPropagation: HostToContainer
{{- range $i, $dir := .Values.host.netnsDirs }}
- name: netns-{{ $i }}
  mountPath: {{ $dir }}
  mountPropagation: HostToContainer
{{- end }}
- name: policies
  mountPath: {{ .Values.host.policyDir }}
  readOnly: true
- name: run
  mountPath: {{ include "sidegate.runDir" . }}
{{- end }}

{{/* One policy's text. The kernel's rules are checked on the node; what is no PodPolicy at all is said here. */}}
{{- define "sidegate.policy" -}}
{{- if kindIs "string" .text }}
{{- if not (contains "PodPolicy" .text) }}
{{- fail (printf "policies: %s has no PodPolicy in it" .name) }}
{{- end }}
{{- .text | trimSuffix "\n" }}
{{- else }}
{{- toYaml .text }}
{{- end }}
{{- end }}

{{/* Directories of the node are mounted at their own paths: none may hide what the image has, or another one. */}}
{{- define "sidegate.checkHost" -}}
{{- $host := .Values.host }}
{{- $dirs := concat (list $host.binDir $host.policyDir $host.ktlsDir $host.bpffs $host.cgroup $host.nriDir (include "sidegate.runDir" .)) $host.netnsDirs }}
{{- range $dir := $dirs }}
{{- range $own := list "/sidegate" "/config" "/proc" }}
{{- if or (eq $dir $own) (hasPrefix (print $own "/") $dir) }}
{{- fail (printf "host: %s is the image's own directory: choose another one" $own) }}
{{- end }}
{{- end }}
{{- range $other := $dirs }}
{{- if and (ne $dir $other) (hasPrefix (print $dir "/") $other) }}
{{- fail (printf "host: %s is below %s, which would hide it: write directories that are not in each other" $other $dir) }}
{{- end }}
{{- end }}
{{- end }}
{{- if and .Values.tls.enabled .Values.applyPolicies }}
{{- fail "tls.enabled: applyPolicies asks the relay, before the pod's containers run and the relay is one of them: switch it off and use kubectl exec (see the notes), or run the relay by systemd on the nodes" }}
{{- end }}
{{- end }}

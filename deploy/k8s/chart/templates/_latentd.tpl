{{- /* The pod's part that the daemon and the job share. */ -}}
{{- define "latentd.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end -}}
{{- define "latentd.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}
{{- /* The ConfigMap's data. Pods read it as they start: whoever is to follow a change carries a sum of it. */ -}}
{{- define "latentd.settings" -}}
PIPELINE: {{ .Values.pipeline | quote }}
MODEL_ID: {{ .Values.modelId | quote }}
{{- range $name, $value := .Values.settings }}
{{ $name }}: {{ $value | quote }}
{{- end }}
{{- end -}}
{{- define "latentd.claim" -}}
{{ .Values.models.claim | default (printf "%s-models" .Release.Name) }}
{{- end -}}

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
{{- define "latentd.claim" -}}
{{ .Values.models.claim | default (printf "%s-models" .Release.Name) }}
{{- end -}}

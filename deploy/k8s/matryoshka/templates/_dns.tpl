{{/* The one flow that everybody needs. */}}
{{- define "matryoshka.dns" -}}
# To the cluster's DNS.
- to:
    {{- toYaml .Values.networkPolicy.dns | nindent 4 }}
  ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
{{- end }}

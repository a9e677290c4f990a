{{/* The one flow that everybody needs. */}}
{{- define "matryoshka.dns" -}}
# To the cluster's DNS.
- to:
    - namespaceSelector:
        matchLabels: {kubernetes.io/metadata.name: kube-system}
  ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
{{- end }}

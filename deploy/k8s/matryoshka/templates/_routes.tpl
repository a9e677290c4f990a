{{/* Which service answers which path, with all below it; of an exact one nothing below it. The router
has the console and hands its calls on; probes and metrics are not among them. */}}
{{- define "matryoshka.routes" -}}
{{- $encoder := printf "encoder-%s" (ternary .Values.router.pool (keys .Values.encoder.pools | sortAlpha | first) .Values.router.enabled) -}}
{{- range $path := list "/v1/embeddings" "/v1/models" "/v1/rerank" "/openapi.json" }}
- {path: {{ $path }}, service: {{ $encoder }}, port: 8000}
{{- end }}
{{- if .Values.router.enabled }}
- {path: /v1/files, service: router, port: 8001}
- {path: /v1/vector_stores, service: router, port: 8001}
- {path: /, service: router, port: 8001, exact: true}
- {path: /console, service: router, port: 8001}
{{- range $service := list "Encoder" "Router" "Trainer" }}
- {path: /matryoshka.v1.{{ $service }}Service, service: router, port: 8001}
{{- end }}
{{- else if .Values.trainer.enabled }}
- {path: /v1/files, service: trainer, port: 8002}
{{- end }}
{{- if .Values.trainer.enabled }}
- {path: /v1/fine_tuning, service: trainer, port: 8002}
{{- end }}
{{- end }}

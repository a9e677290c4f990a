{{/*
Shares of requests that failed by our fault, and that took longer than promised, of each service
and window: what the alerts on objectives are made of. {of, encoderSeconds, routerSeconds}
*/}}
{{- define "matryoshka.slo" -}}
{{- $of := .of }}
{{- $fault := "INTERNAL|UNKNOWN|UNAVAILABLE|DEADLINE_EXCEEDED|DATA_LOSS" }}
{{- $methods := dict "encoder" "Embed|POST /v1/embeddings" "router" "Search|POST /v1/vector_stores/{vector_store_id}/search" }}
{{- $bounds := dict "encoder" .encoderSeconds "router" .routerSeconds }}
- name: matryoshka-ratios
  rules:
    {{- range $service := list "encoder" "router" }}
    {{- $requests := printf "matryoshka_%s_requests_total" $service }}
    {{- $seconds := printf "matryoshka_%s_request_seconds" $service }}
    {{- $searched := printf "%s,method=~%q" $of (get $methods $service) }}
    {{- range $window := list "5m" "30m" "1h" "2h" "6h" "1d" }}
    - record: matryoshka:errors:ratio_rate{{ $window }}
      expr: >-
        sum by (namespace, release) (rate({{ $requests }}{ {{- $of }},outcome=~"{{ $fault }}"}[{{ $window }}]))
        / sum by (namespace, release) (rate({{ $requests }}{ {{- $of -}} }[{{ $window }}]))
      labels: {service: {{ $service }}}
    - record: matryoshka:slow:ratio_rate{{ $window }}
      expr: >-
        1 - sum by (namespace, release) (rate({{ $seconds }}_bucket{ {{- $searched }},le="{{ get $bounds $service }}"}[{{ $window }}]))
        / sum by (namespace, release) (rate({{ $seconds }}_count{ {{- $searched -}} }[{{ $window }}]))
      labels: {service: {{ $service }}}
    {{- end }}
    {{- end }}
{{- end }}

{{/*
Lay `over` onto `base`, which changes: maps by their keys, all else whole. Unlike Sprig's merges it
takes false, 0 and "" for what they are.
*/}}
{{- define "matryoshka.overlay" -}}
{{- $base := .base }}
{{- range $key, $value := .over }}
{{- if and (kindIs "map" $value) (kindIs "map" (get $base $key)) }}
{{- include "matryoshka.overlay" (dict "base" (get $base $key) "over" $value) }}
{{- else }}
{{- $_ := set $base $key $value }}
{{- end }}
{{- end }}
{{- end }}

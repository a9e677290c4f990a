{{/* Names and labels. */}}

{{- define "matryoshka.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- $both := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) }}
{{- default $both .Values.fullnameOverride | trunc 30 | trimSuffix "-" }}
{{- end }}

{{/* What an object of a component is called: (list $ "router"). */}}
{{- define "matryoshka.name" -}}
{{- printf "%s-%s" (include "matryoshka.fullname" (index . 0)) (index . 1) }}
{{- end }}

{{- define "matryoshka.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: matryoshka
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* By what pods of a component are found: (list $ "router"). */}}
{{- define "matryoshka.selector" -}}
app.kubernetes.io/name: matryoshka
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* An image: (list $ "router"). */}}
{{- define "matryoshka.image" -}}
{{- $root := index . 0 }}
{{- $image := get $root.Values.images (index . 1) }}
{{- $repository := list $root.Values.images.registry $image.repository | compact | join "/" }}
{{- if $image.digest }}{{ $repository }}@{{ $image.digest }}
{{- else }}{{ $repository }}:{{ default $root.Chart.AppVersion $image.tag }}{{ end }}
{{- end }}

{{/* The Secret of the operator's key. */}}
{{- define "matryoshka.authSecret" -}}
{{- default (include "matryoshka.name" (list . "auth")) .Values.auth.existingSecret }}
{{- end }}

{{/* The Secret of the keys that services send each other. */}}
{{- define "matryoshka.servicesSecret" -}}
{{- default (include "matryoshka.name" (list . "services")) .Values.auth.servicesSecret }}
{{- end }}

{{/* The Secret of Qdrant's key; empty: none is sent. */}}
{{- define "matryoshka.qdrantSecret" -}}
{{- if .Values.qdrant.existingSecret }}{{ .Values.qdrant.existingSecret }}
{{- else if eq .Values.qdrant.mode "bundled" }}{{ include "matryoshka.name" (list . "qdrant") }}{{ end }}
{{- end }}

{{- define "matryoshka.stateClaim" -}}
{{- default (include "matryoshka.name" (list . "state")) .Values.state.existingClaim }}
{{- end }}

{{/* Where one pod of a component's pods is found by gRPC: (list $ "router" port). */}}
{{- define "matryoshka.address" -}}
dns:///{{ include "matryoshka.name" . }}-headless.{{ (index . 0).Release.Namespace }}.svc:{{ index . 2 }}
{{- end }}

{{/* A setting or annotation as text: whole numbers without an exponent. */}}
{{- define "matryoshka.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ printf "%.0f" . }}{{ else }}{{ toString . }}{{ end }}
{{- end }}

{{/*
The services' workloads, in one shape, so that each kind of object is written once.

`include "matryoshka.workloads" $found` with `$found := dict "root" $` puts a list into
$found.workloads: encoder pools, router, trainer. Each is its values and: component, name (in
names of objects), labels, image, http and grpc (ports), serves (whose Service finds it),
isScaled, state ("": not mounted; "read" or "write"), volume ("": none, "claim", "empty").
*/}}
{{- define "matryoshka.workloads" -}}
{{- $root := .root }}
{{- $values := $root.Values }}
{{- $list := list }}
{{- range $pool, $given := $values.encoder.pools }}
{{- $one := deepCopy $values.encoder.poolDefaults }}
{{- include "matryoshka.overlay" (dict "base" $one "over" (default dict $given)) }}
{{- include "matryoshka.onProfile" (dict "root" $root "one" $one) }}
{{- $serves := default $pool $one.serves }}
{{- $state := and $one.readsTrainedModels $values.trainer.enabled | ternary "read" "" }}
{{- $own := dict "component" "encoder" "pool" $pool "name" (printf "encoder-%s" $pool)
      "serves" (printf "encoder-%s" $serves) "http" 8000 "grpc" 9000 "probes" 8100
      "drain" $values.encoder.drain "state" $state
      "volume" (ternary "claim" "empty" $one.persistence.enabled) }}
{{- include "matryoshka.overlay" (dict "base" $one "over" $own) }}
{{- $list = append $list $one }}
{{- end }}
{{- if $values.router.enabled }}
{{- $isStateless := include "matryoshka.routerIsStateless" $root }}
{{- $own := dict "component" "router" "pool" "" "name" "router" "serves" "router" "http" 8001 "grpc" 9001 "probes" 8101
      "image" (include "matryoshka.image" (list $root "router"))
      "state" (ternary "" "write" (eq $isStateless "true"))
      "volume" (ternary "empty" "" (eq $isStateless "true")) "runtimeClassName" "" }}
{{- $one := deepCopy $values.router }}
{{- include "matryoshka.overlay" (dict "base" $one "over" $own) }}
{{- $list = append $list $one }}
{{- end }}
{{- if $values.trainer.enabled }}
{{- $one := deepCopy $values.trainer }}
{{- include "matryoshka.onProfile" (dict "root" $root "one" $one) }}
{{- $own := dict "component" "trainer" "pool" "" "name" "trainer" "serves" "trainer" "http" 8002 "grpc" 9002 "probes" 8102
      "state" "write" "volume" "" "autoscaling" (dict "enabled" false) "keda" (dict "enabled" false) }}
{{- include "matryoshka.overlay" (dict "base" $one "over" $own) }}
{{- $list = append $list $one }}
{{- end }}
{{- range $list }}
{{- $_ := set . "isScaled" (or .autoscaling.enabled .keda.enabled) }}
{{- $least := int .replicas }}
{{- if .autoscaling.enabled }}{{ $least = int .autoscaling.minReplicas }}{{ end }}
{{- if .keda.enabled }}{{ $least = int .keda.minReplicas }}{{ end }}
{{- $_ := set . "least" $least }}
{{- end }}
{{- $_ := set . "workloads" $list }}
{{- end }}

{{/* Lay a workload's own machine onto its profile's: {root, one}; `one` changes. */}}
{{- define "matryoshka.onProfile" -}}
{{- $one := .one }}
{{- $profile := get .root.Values.profiles $one.profile }}
{{- if not $profile }}
{{- fail (printf "profile %q is not one of profiles: %s" $one.profile (keys .root.Values.profiles | sortAlpha | join ", ")) }}
{{- end }}
{{- $profile = deepCopy $profile }}
{{- $resources := default dict $profile.resources }}
{{- include "matryoshka.overlay" (dict "base" $resources "over" $one.resources) }}
{{- $selector := default dict $profile.nodeSelector }}
{{- include "matryoshka.overlay" (dict "base" $selector "over" $one.nodeSelector) }}
{{- $_ := set $one "resources" $resources }}
{{- $_ := set $one "nodeSelector" $selector }}
{{- $_ := set $one "tolerations" (concat (default list $profile.tolerations) $one.tolerations) }}
{{- $_ := set $one "runtimeClassName" (default "" $profile.runtimeClassName) }}
{{- $_ := set $one "image" (include "matryoshka.image" (list .root $profile.image)) }}
{{- end }}

{{/* "true": all that a router must keep is elsewhere. */}}
{{- define "matryoshka.routerIsStateless" -}}
{{- and .Values.database.existingSecret .Values.files.url (ne .Values.qdrant.mode "embedded") | not | not }}
{{- end }}

{{/* The pool by which promoted models are loaded. */}}
{{- define "matryoshka.trainerPool" -}}
{{- default .Values.router.pool .Values.trainer.pool }}
{{- end }}

{{/* Values that contradict each other: one sentence that says what would do. */}}
{{- define "matryoshka.checks" -}}
{{- $v := .Values }}
{{- $found := dict "root" . }}
{{- include "matryoshka.workloads" $found }}
{{- $isStateless := eq (include "matryoshka.routerIsStateless" .) "true" }}
{{- $pools := dict }}
{{- range $found.workloads }}{{ if .pool }}{{ $_ := set $pools .pool . }}{{ end }}{{ end }}

{{- if and $v.database.existingSecret (not $v.files.url) }}
{{- fail "database.existingSecret needs files.url beside it: routers that share a database share the files it names" }}
{{- end }}
{{- if and $v.files.url (not $v.database.existingSecret) }}
{{- fail "files.url needs database.existingSecret beside it: the files' names are kept there" }}
{{- end }}
{{- if and (eq $v.state.accessMode "ReadWriteMany") (not $v.database.existingSecret) }}
{{- fail "state.accessMode ReadWriteMany needs database.existingSecret and files.url: SQLite loses its locks on volumes of many nodes" }}
{{- end }}
{{- if and (not $v.auth.enabled) (or $v.ingress.enabled $v.gateway.enabled) }}
{{- fail "ingress and gateway need auth.enabled: without keys every caller is an operator" }}
{{- end }}
{{- if and (not $v.auth.enabled) (or $v.auth.existingSecret $v.auth.keysSecret $v.auth.servicesSecret) }}
{{- fail "auth.existingSecret, auth.keysSecret and auth.servicesSecret protect nothing while auth.enabled is false: set it, or leave them empty" }}
{{- end }}
{{- if and $v.tls.enabled (not $v.tls.existingSecret) }}
{{- fail "tls.enabled needs tls.existingSecret: a Secret with tls.crt, tls.key and ca.crt" }}
{{- end }}
{{- if and $v.tls.existingSecret (not $v.tls.enabled) }}
{{- fail "tls.existingSecret encrypts nothing while tls.enabled is false: set it, or leave it empty" }}
{{- end }}
{{- if not $pools }}{{ fail "encoder.pools must have a pool" }}{{ end }}

{{- if $v.router.enabled }}
{{- if not (hasKey $pools $v.router.pool) }}
{{- fail (printf "router.pool %q is not one of encoder.pools: %s" $v.router.pool (keys $pools | sortAlpha | join ", ")) }}
{{- end }}
{{- if and (not $isStateless) (or (ne (int $v.router.replicas) 1) $v.router.autoscaling.enabled $v.router.keda.enabled) }}
{{- fail "router.replicas above 1, router.autoscaling and router.keda need database.existingSecret, files.url and a qdrant.mode other than embedded: each router would keep stores of its own" }}
{{- end }}
{{- end }}

{{- if $v.trainer.enabled }}
{{- $pool := include "matryoshka.trainerPool" . }}
{{- if not (hasKey $pools $pool) }}
{{- fail (printf "trainer.pool %q is not one of encoder.pools: %s" $pool (keys $pools | sortAlpha | join ", ")) }}
{{- end }}
{{- if and (gt (int $v.trainer.replicas) 1) (ne $v.state.accessMode "ReadWriteMany") }}
{{- fail "trainer.replicas above 1 need state.accessMode ReadWriteMany: all of them see the jobs' folders" }}
{{- end }}
{{- if and (eq $v.trainer.launcher "kubernetes") (ne $v.state.accessMode "ReadWriteMany") }}
{{- fail "trainer.launcher kubernetes needs state.accessMode ReadWriteMany: pods of jobs write the trainer's folders from any node" }}
{{- end }}
{{- $j := $v.trainer.jobs }}
{{- if and (eq $v.trainer.launcher "local") (or $j.queue (gt (int $j.nodes) 1)) }}
{{- fail "trainer.jobs.queue and trainer.jobs.nodes above 1 need trainer.launcher kubernetes" }}
{{- end }}
{{- if and (eq $v.trainer.launcher "local") (or $j.nodeSelector $j.tolerations $j.runtimeClassName $j.priorityClassName) }}
{{- fail "trainer.jobs.nodeSelector, tolerations, runtimeClassName and priorityClassName need trainer.launcher kubernetes: local jobs run in the trainer's own pod, which trainer.profile and trainer.tolerations place" }}
{{- end }}
{{- end }}

{{- range $name, $pool := $pools }}
{{- if $pool.serves }}{{/* always set; "encoder-NAME" */}}
{{- $of := trimPrefix "encoder-" $pool.serves }}
{{- if not (hasKey $pools $of) }}
{{- fail (printf "encoder.pools.%s.serves %q is not one of encoder.pools: %s" $name $of (keys $pools | sortAlpha | join ", ")) }}
{{- end }}
{{- if ne (get $pools $of).serves (printf "encoder-%s" $of) }}
{{- fail (printf "encoder.pools.%s.serves %q serves another pool itself; name that one" $name $of) }}
{{- end }}
{{- if ne $pool.model (get $pools $of).model }}
{{- fail (printf "encoder.pools.%s.model must be that of the pool it serves, %q: callers would get vectors of two spaces" $name (get $pools $of).model) }}
{{- end }}
{{- if and $pool.keda.enabled (eq (int $pool.keda.minReplicas) 0) (eq $of $name) }}
{{- fail (printf "encoder.pools.%s.keda.minReplicas 0 needs `serves`: with no pod there would be nobody to answer, and nothing to measure" $name) }}
{{- end }}
{{- end }}
{{- end }}

{{- range $found.workloads }}
{{- $where := ternary (printf "encoder.pools.%s" .pool) .component (eq .component "encoder") }}
{{- if and .autoscaling.enabled .keda.enabled }}
{{- fail (printf "%s has both autoscaling and keda: enable one of them, as they would work against each other" $where) }}
{{- end }}
{{- if and .autoscaling.enabled (gt (int .autoscaling.minReplicas) (int .autoscaling.maxReplicas)) }}
{{- fail (printf "%s.autoscaling.minReplicas must be at most maxReplicas" $where) }}
{{- end }}
{{- if and .autoscaling.enabled (not (or .autoscaling.targetCPUPercent .autoscaling.targetQueuedTokens .autoscaling.metrics)) }}
{{- fail (printf "%s.autoscaling needs something to look at: targetCPUPercent, metrics, or of an encoder targetQueuedTokens" $where) }}
{{- end }}
{{- if .keda.enabled }}
{{- if gt (int .keda.minReplicas) (int .keda.maxReplicas) }}
{{- fail (printf "%s.keda.minReplicas must be at most maxReplicas" $where) }}
{{- end }}
{{- if not .keda.prometheusUrl }}
{{- fail (printf "%s.keda.prometheusUrl must name the Prometheus that scrapes these pods" $where) }}
{{- end }}
{{- end }}
{{- include "matryoshka.checkCores" (list $where .resources) }}
{{- $stopping := add (int .drain.drainSeconds) (int .drain.graceSeconds) }}
{{- if eq .component "trainer" }}
{{- $stopping = add $stopping (include "matryoshka.jobsStopSeconds" $ | int) }}
{{- end }}
{{- if le (int .drain.terminationGracePeriodSeconds) (int $stopping) }}
{{- fail (printf "%s.drain.terminationGracePeriodSeconds must be above %d: what a pod may take to stop" (ternary "encoder" .component (eq .component "encoder")) $stopping) }}
{{- end }}
{{- end }}

{{- $q := $v.qdrant }}
{{- if and (eq $q.mode "external") (not $q.url) }}{{ fail "qdrant.mode external needs qdrant.url, such as http://qdrant:6333" }}{{ end }}
{{- if and (ne $q.mode "external") $q.url }}{{ fail (printf "qdrant.url is for qdrant.mode external; it is %s" $q.mode) }}{{ end }}
{{- if and $q.tlsSecret (or (eq $q.mode "embedded") (and (eq $q.mode "external") (not (hasPrefix "https://" $q.url)))) }}
{{- fail "qdrant.tlsSecret encrypts nothing here: it is for qdrant.mode bundled, or for external with a qdrant.url of https://" }}
{{- end }}
{{- if eq $q.mode "bundled" }}
{{- include "matryoshka.checkCores" (list "qdrant" $q.resources) }}
{{- if gt (int $q.replicationFactor) (int $q.replicas) }}
{{- fail "qdrant.replicationFactor must be at most qdrant.replicas: a node holds one replica of a shard" }}
{{- end }}
{{- if le (int $q.terminationGracePeriodSeconds) (int $q.preStopSeconds) }}
{{- fail "qdrant.terminationGracePeriodSeconds must be above qdrant.preStopSeconds" }}
{{- end }}
{{- end }}
{{- if and $v.ingress.enabled (not $v.ingress.host) }}{{ fail "ingress.enabled needs ingress.host" }}{{ end }}
{{- if and $v.gateway.enabled (not $v.gateway.parentRefs) }}{{ fail "gateway.enabled needs gateway.parentRefs" }}{{ end }}
{{- if and $v.gateway.enabled (not $v.gateway.hostnames) }}{{ fail "gateway.enabled needs gateway.hostnames" }}{{ end }}
{{- range $v.gateway.grpcHostnames }}
{{- if has . $v.gateway.hostnames }}
{{- fail (printf "gateway.grpcHostnames and gateway.hostnames share %q: gRPC needs a host of its own" .) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Beside drain and grace: time in which a trainer that stops lets jobs save and end. */}}
{{- define "matryoshka.jobsStopSeconds" -}}
{{- $stop := get .Values.trainer.settings "stop_s" | default 10 | int }}
{{- ternary (add $stop 30) $stop (eq .Values.trainer.launcher "kubernetes") }}
{{- end }}

{{/* Kubernetes would refuse such pods one by one, where nobody looks: (list where resources). */}}
{{- define "matryoshka.checkCores" -}}
{{- $resources := index . 1 }}
{{- $promised := dig "requests" "cpu" "0" $resources | toString }}
{{- $most := dig "limits" "cpu" "" $resources | toString }}
{{- if $most }}
{{- if gt (include "matryoshka.millicores" $promised | float64) (include "matryoshka.millicores" $most | float64) }}
{{- fail (printf "%s.resources.requests.cpu %s must be at most limits.cpu %s: raise both" (index . 0) $promised $most) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "matryoshka.millicores" -}}
{{- if hasSuffix "m" . }}{{ trimSuffix "m" . }}{{ else }}{{ mulf 1000 (float64 .) }}{{ end }}
{{- end }}

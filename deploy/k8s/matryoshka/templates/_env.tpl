{{/* Variables of a service's container: (dict "root" $ "one" workload). */}}
{{- define "matryoshka.env" -}}
{{- $root := .root }}
{{- $v := $root.Values }}
{{- $one := .one }}
{{- $prefix := printf "MATRYOSHKA_%s" (upper $one.component) -}}
- name: {{ $prefix }}_HOST
  value: 0.0.0.0
- name: {{ $prefix }}_HTTP_PORT
  value: {{ $one.http | quote }}
- name: {{ $prefix }}_GRPC_PORT
  value: {{ $one.grpc | quote }}
- name: {{ $prefix }}_LOG_FORMAT
  value: {{ $v.logFormat }}
- name: {{ $prefix }}_DRAIN_S
  value: {{ include "matryoshka.text" $one.drain.drainSeconds | quote }}
- name: {{ $prefix }}_GRACE_S
  value: {{ include "matryoshka.text" $one.drain.graceSeconds | quote }}
{{- if $v.auth.enabled }}
- name: {{ $prefix }}_PEER_KEYS_FILE
  value: /etc/matryoshka/peers/keys.jsonl
{{- if $v.auth.keysSecret }}
- name: {{ $prefix }}_KEYS_FILE
  value: /etc/matryoshka/keys/keys.jsonl
{{- end }}
{{- end }}
{{- if include "matryoshka.secrets" . | fromYamlArray }}
- name: {{ $prefix }}_SECRETS_DIR
  value: /etc/matryoshka/secrets
{{- end }}
- name: {{ $prefix }}_PROBE_PORT
  value: {{ $one.probes | quote }}
{{- if $v.tls.enabled }}
- name: {{ $prefix }}_TLS_CERT
  value: /etc/matryoshka/tls/tls.crt
- name: {{ $prefix }}_TLS_KEY
  value: /etc/matryoshka/tls/tls.key
{{- if $v.tls.mutual }}
- name: {{ $prefix }}_TLS_GRPC_CLIENT_CA
  value: /etc/matryoshka/tls/ca.crt
{{- end }}
{{- if ne $one.component "encoder" }}
- name: {{ $prefix }}_TLS_PEER_CA
  value: /etc/matryoshka/tls/ca.crt
{{- end }}
{{- end }}
{{ include (printf "matryoshka.env.%s" $one.component) . }}
{{- range $name, $value := $one.settings }}
- name: {{ $prefix }}_{{ upper $name }}
  value: {{ include "matryoshka.text" $value | quote }}
{{- end }}
{{- /* An encoder's threads wait for each other: as many as it is promised cores. */}}
- name: OMP_NUM_THREADS
  valueFrom: {resourceFieldRef: {resource: {{ ternary "requests" "limits" (eq $one.component "encoder") }}.cpu, divisor: "1"}}
- name: HOME
  value: /tmp
- name: HF_HOME
  value: /tmp/huggingface
- name: MPLCONFIGDIR
  value: /tmp/matplotlib
- name: NUMBA_CACHE_DIR
  value: /tmp/numba
- name: TOKENIZERS_PARALLELISM
  value: "false"
{{- if and (eq $one.component "encoder") (not $v.networkPolicy.modelHubs) $v.networkPolicy.enabled }}
- name: HF_HUB_OFFLINE
  value: "1"
{{- end }}
{{- with $one.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/*
What a service reads from files of Secrets, {field, secret, key} each, and finds in no variable:
(dict "root" $ "one" workload).
*/}}
{{- define "matryoshka.secrets" -}}
{{- $root := .root }}
{{- $v := $root.Values }}
{{- $own := .one.component }}
{{- if $v.auth.enabled }}
- {field: api_key, secret: {{ include "matryoshka.authSecret" $root }}, key: api-key}
{{- range $key, $peer := include "matryoshka.peers" $root | fromYaml }}
{{- if eq $peer.from $own }}
- {field: {{ $peer.to }}_api_key, secret: {{ include "matryoshka.servicesSecret" $root }}, key: {{ $key }}}
{{- end }}
{{- end }}
{{- end }}
{{- if and (eq $own "router") (ne $v.qdrant.mode "embedded") }}
{{- with include "matryoshka.qdrantSecret" $root }}
- {field: qdrant_api_key, secret: {{ . }}, key: api-key}
{{- end }}
{{- end }}
{{- if and $v.database.existingSecret (ne $own "encoder") }}
- {field: database_url, secret: {{ $v.database.existingSecret }}, key: {{ $v.database.key }}}
{{- if and (eq $own "trainer") $v.router.enabled }}
- {field: files_database_url, secret: {{ $v.database.existingSecret }}, key: {{ $v.database.key }}}
{{- end }}
{{- end }}
{{- end }}

{{/* The keys that services send each other, and what each is for; docs/operations.md says why. */}}
{{- define "matryoshka.peers" -}}
router-to-encoder: {from: router, to: encoder, scopes: [embed]}
router-to-trainer: {from: router, to: trainer, scopes: [train]}
trainer-to-encoder: {from: trainer, to: encoder, scopes: [admin]}
trainer-to-router: {from: trainer, to: router, scopes: [search, admin]}
{{- end }}

{{- define "matryoshka.env.encoder" -}}
- name: MATRYOSHKA_ENCODER_DATA_DIR
  value: /var/lib/encoder
- name: MATRYOSHKA_ENCODER_MODEL
  value: {{ .one.model | quote }}
{{- if and .one.state (eq .one.serves (printf "encoder-%s" (include "matryoshka.trainerPool" .root))) }}
- name: MATRYOSHKA_ENCODER_SERVED_FILE
  value: /var/lib/matryoshka/served.json
{{- end }}
{{- end }}

{{- define "matryoshka.env.router" -}}
{{- $v := .root.Values -}}
- name: MATRYOSHKA_ROUTER_DATA_DIR
  value: /var/lib/matryoshka
- name: MATRYOSHKA_ROUTER_ENCODER_ADDRESS
  value: {{ include "matryoshka.address" (list .root (printf "encoder-%s" $v.router.pool) 9000) }}
{{- if $v.trainer.enabled }}
- name: MATRYOSHKA_ROUTER_TRAINER_ADDRESS
  value: {{ include "matryoshka.address" (list .root "trainer" 9002) }}
{{- end }}
{{- if ne $v.qdrant.mode "embedded" }}
- name: MATRYOSHKA_ROUTER_QDRANT_URL
  value: {{ default (printf "%s://%s.%s.svc:6333" (ternary "https" "http" (ne $v.qdrant.tlsSecret "")) (include "matryoshka.name" (list .root "qdrant")) .root.Release.Namespace) $v.qdrant.url }}
- name: MATRYOSHKA_ROUTER_QDRANT_GRPC_PORT
  value: {{ include "matryoshka.text" $v.qdrant.grpcPort | quote }}
{{- if $v.qdrant.tlsSecret }}
- name: MATRYOSHKA_ROUTER_QDRANT_TLS_CA
  value: /etc/matryoshka/qdrant/ca.crt
{{- end }}
{{- end }}
{{- if $v.database.existingSecret }}
- name: MATRYOSHKA_ROUTER_FILES_URL
  value: {{ $v.files.url | quote }}
{{- end }}
{{- end }}

{{- define "matryoshka.env.trainer" -}}
{{- $v := .root.Values -}}
- name: MATRYOSHKA_TRAINER_DATA_DIR
  value: /var/lib/matryoshka
- name: MATRYOSHKA_TRAINER_ENCODER_ADDRESS
  value: {{ include "matryoshka.address" (list .root (printf "encoder-%s" (include "matryoshka.trainerPool" .root)) 9000) }}
{{- if $v.router.enabled }}
- name: MATRYOSHKA_TRAINER_ROUTER_ADDRESS
  value: {{ include "matryoshka.address" (list .root "router" 9001) }}
{{- end }}
{{- if $v.database.existingSecret }}
- name: MATRYOSHKA_TRAINER_FILES_URL
  value: {{ $v.files.url | quote }}
{{- end }}
{{- if and $v.router.enabled (not $v.database.existingSecret) }}
{{- /* One set of files: the router serves them, and ends what was deleted. */}}
- name: MATRYOSHKA_TRAINER_FILES_DATABASE_URL
  value: sqlite:////var/lib/matryoshka/router.sqlite
{{- end }}
- name: MATRYOSHKA_TRAINER_LAUNCHER
  value: {{ $v.trainer.launcher }}
- name: MATRYOSHKA_TRAINER_DEVICES
  value: {{ include "matryoshka.text" $v.trainer.jobs.devices | quote }}
{{- if eq $v.trainer.launcher "kubernetes" }}
- name: MATRYOSHKA_TRAINER_KUBERNETES_NAMESPACE
  value: {{ .root.Release.Namespace }}
- name: MATRYOSHKA_TRAINER_KUBERNETES_IMAGE
  value: {{ include "matryoshka.image" (list .root $v.trainer.jobs.image) }}
- name: MATRYOSHKA_TRAINER_KUBERNETES_CLAIM
  value: {{ include "matryoshka.stateClaim" .root }}
{{- range $name := list "nodes" "gpus" "cpu" "memory" }}
- name: MATRYOSHKA_TRAINER_KUBERNETES_{{ upper $name }}
  value: {{ include "matryoshka.text" (get $v.trainer.jobs $name) | quote }}
{{- end }}
{{- with $v.trainer.jobs.queue }}
- name: MATRYOSHKA_TRAINER_KUBERNETES_QUEUE
  value: {{ . }}
{{- end }}
{{- with $v.trainer.jobs.nodeSelector }}
- name: MATRYOSHKA_TRAINER_KUBERNETES_NODE_SELECTOR
  value: {{ toJson . | quote }}
{{- end }}
{{- with $v.trainer.jobs.tolerations }}
- name: MATRYOSHKA_TRAINER_KUBERNETES_TOLERATIONS
  value: {{ toJson . | quote }}
{{- end }}
{{- with $v.trainer.jobs.runtimeClassName }}
- name: MATRYOSHKA_TRAINER_KUBERNETES_RUNTIME_CLASS
  value: {{ . }}
{{- end }}
{{- with $v.trainer.jobs.priorityClassName }}
- name: MATRYOSHKA_TRAINER_KUBERNETES_PRIORITY_CLASS
  value: {{ . }}
{{- end }}
{{- end }}
{{- end }}

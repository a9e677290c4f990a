{{/* The pod of a service: its template's metadata and spec: (dict "root" $ "one" workload). */}}
{{- define "matryoshka.pod" -}}
{{- $root := .root }}
{{- $v := $root.Values }}
{{- $one := .one }}
{{- $secrets := include "matryoshka.secrets" . | fromYamlArray -}}
metadata:
  labels:
    {{- include "matryoshka.labels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ $one.component }}
    {{- with $one.pool }}
    matryoshka/pool: {{ . }}
    {{- end }}
    matryoshka/serves: {{ $one.serves }}
    {{- if $one.state }}
    matryoshka/mounts-state: "true"
    {{- end }}
  {{- $annotations := deepCopy $one.podAnnotations }}
  {{- if $v.monitoring.annotations }}
  {{- $scrape := dict "prometheus.io/scrape" "true" "prometheus.io/path" "/metrics" "prometheus.io/port" (toString $one.http) }}
  {{- $annotations = merge $annotations $scrape }}
  {{- end }}
  {{- with $annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "matryoshka.name" (list $root $one.component) }}
  {{- $callsApi := and (eq $one.component "trainer") (eq $v.trainer.launcher "kubernetes") }}
  automountServiceAccountToken: {{ $callsApi }}
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ $one.drain.terminationGracePeriodSeconds | int }}
  {{- with $v.images.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- with $one.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $one.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with $one.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $one.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with include "matryoshka.affinity" . }}
  affinity:
    {{- . | nindent 4 }}
  {{- end }}
  {{- include "matryoshka.spread" (dict "root" $root "labels" (dict "matryoshka/serves" $one.serves)) | nindent 2 }}
  {{- include "matryoshka.podSecurity" (dict "user" 65532) | nindent 2 }}
  containers:
    - name: {{ $one.component }}
      image: {{ $one.image }}
      imagePullPolicy: {{ $v.images.pullPolicy }}
      args: [serve, {{ $one.component }}]
      env:
        {{- include "matryoshka.env" . | nindent 8 }}
      {{- if and $v.files.existingSecret (ne $one.component "encoder") }}
      envFrom:
        - secretRef: {name: {{ $v.files.existingSecret }}}
      {{- end }}
      ports:
        - {name: http, containerPort: {{ $one.http }}}
        - {name: grpc, containerPort: {{ $one.grpc }}}
        - {name: probes, containerPort: {{ $one.probes }}}
      {{- /* Ready once it has loaded; until then neither of the others is asked. */}}
      startupProbe:
        httpGet: {path: /readyz, port: probes}
        periodSeconds: 5
        timeoutSeconds: 3
        failureThreshold: {{ divf $one.startupBudgetSeconds 5 | ceil | int }}
      readinessProbe:
        {{- /* Kubernetes cannot ask gRPC over TLS; then the same is asked by HTTP. */}}
        {{- if $v.tls.enabled }}
        httpGet: {path: /readyz, port: probes}
        {{- else }}
        grpc: {port: {{ $one.grpc }}}
        {{- end }}
        periodSeconds: 5
        timeoutSeconds: 3
        failureThreshold: 2
      livenessProbe:
        httpGet: {path: /livez, port: probes}
        periodSeconds: 10
        timeoutSeconds: 10
        failureThreshold: 6
      resources:
        {{- toYaml $one.resources | nindent 8 }}
      {{- include "matryoshka.containerSecurity" . | nindent 6 }}
      volumeMounts:
        - {name: scratch, mountPath: /tmp}
        {{- if $one.volume }}
        - {name: data, mountPath: {{ ternary "/var/lib/encoder" "/var/lib/matryoshka" (eq $one.component "encoder") }}}
        {{- end }}
        {{- if $one.state }}
        - {name: state, mountPath: /var/lib/matryoshka, readOnly: {{ eq $one.state "read" }}}
        {{- end }}
        {{- if $secrets }}
        - {name: secrets, mountPath: /etc/matryoshka/secrets, readOnly: true}
        {{- end }}
        {{- if and $v.auth.enabled $v.auth.keysSecret }}
        - {name: keys, mountPath: /etc/matryoshka/keys, readOnly: true}
        {{- end }}
        {{- if $v.auth.enabled }}
        - {name: peers, mountPath: /etc/matryoshka/peers, readOnly: true}
        {{- end }}
        {{- if and (eq $one.component "router") $v.qdrant.tlsSecret }}
        - {name: qdrant, mountPath: /etc/matryoshka/qdrant, readOnly: true}
        {{- end }}
        {{- if $v.tls.enabled }}
        - {name: tls, mountPath: /etc/matryoshka/tls, readOnly: true}
        {{- end }}
        {{- if and $one.models $one.models.existingClaim }}
        - {name: models, mountPath: /models, readOnly: true}
        {{- end }}
  volumes:
    - name: scratch
      emptyDir: {}
    {{- if eq $one.volume "empty" }}
    - name: data
      emptyDir: {}
    {{- end }}
    {{- if $one.state }}
    - name: state
      persistentVolumeClaim: {claimName: {{ include "matryoshka.stateClaim" $root }}}
    {{- end }}
    {{- if $secrets }}
    - name: secrets
      projected:
        sources:
          {{- range $secrets }}
          - secret: {name: {{ .secret }}, items: [{key: {{ .key }}, path: matryoshka_{{ $one.component }}_{{ .field }}}]}
          {{- end }}
    {{- end }}
    {{- if and $v.auth.enabled $v.auth.keysSecret }}
    - name: keys
      secret: {secretName: {{ $v.auth.keysSecret }}, items: [{key: keys.jsonl, path: keys.jsonl}]}
    {{- end }}
    {{- if $v.auth.enabled }}
    - name: peers
      secret: {secretName: {{ include "matryoshka.servicesSecret" $root }}, items: [{key: {{ $one.component }}.jsonl, path: keys.jsonl}]}
    {{- end }}
    {{- if and (eq $one.component "router") $v.qdrant.tlsSecret }}
    - name: qdrant
      secret: {secretName: {{ $v.qdrant.tlsSecret }}, items: [{key: ca.crt, path: ca.crt}]}
    {{- end }}
    {{- if $v.tls.enabled }}
    - name: tls
      secret: {secretName: {{ $v.tls.existingSecret }}}
    {{- end }}
    {{- if and $one.models $one.models.existingClaim }}
    - name: models
      persistentVolumeClaim: {claimName: {{ $one.models.existingClaim }}, readOnly: true}
    {{- end }}
{{- end }}

{{/* The pod's own affinity, and with a volume of one node a wish for company there. */}}
{{- define "matryoshka.affinity" -}}
{{- $affinity := deepCopy .one.affinity }}
{{- if and .one.state (eq .root.Values.state.accessMode "ReadWriteOnce") }}
{{- $labels := dict "app.kubernetes.io/instance" .root.Release.Name "matryoshka/mounts-state" "true" }}
{{- $term := dict "topologyKey" "kubernetes.io/hostname" "labelSelector" (dict "matchLabels" $labels) }}
{{- $pods := default dict (get $affinity "podAffinity") }}
{{- $required := default list (get $pods "requiredDuringSchedulingIgnoredDuringExecution") }}
{{- $_ := set $pods "requiredDuringSchedulingIgnoredDuringExecution" (append $required $term) }}
{{- $_ := set $affinity "podAffinity" $pods }}
{{- end }}
{{- if $affinity }}{{ toYaml $affinity }}{{ end }}
{{- end }}

{{/* {root, labels}: of the pods that are to be spread. */}}
{{- define "matryoshka.spread" -}}
{{- $root := .root }}
{{- $labels := .labels }}
{{- with $root.Values.spread.topologyKeys -}}
topologySpreadConstraints:
  {{- range . }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: {{ $root.Values.spread.whenUnsatisfiable }}
    labelSelector:
      matchLabels:
        app.kubernetes.io/instance: {{ $root.Release.Name }}
        {{- toYaml $labels | nindent 8 }}
  {{- end }}
{{- end }}
{{- end }}

{{/* What Pod Security's "restricted" asks of a pod: {user}. */}}
{{- define "matryoshka.podSecurity" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .user }}
  runAsGroup: {{ .user }}
  fsGroup: {{ .user }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* And of a container. */}}
{{- define "matryoshka.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

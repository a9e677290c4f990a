# Starts a node of Qdrant: alone, or as one of a cluster that the first node begins.
set -eu
# Qdrant takes its key from its own environment only; the pod's description holds none.
QDRANT__SERVICE__API_KEY=$(cat "$API_KEY_FILE")
export QDRANT__SERVICE__API_KEY
if [ "$QDRANT__CLUSTER__ENABLED" != true ]; then
  exec ./qdrant
fi
scheme=http
if [ "${QDRANT__CLUSTER__P2P__ENABLE_TLS:-}" = true ]; then
  scheme=https
fi
uri="$scheme://$POD.$PEERS:6335"
if [ "$POD" = "$FIRST" ]; then
  exec ./qdrant --uri "$uri"
fi
exec ./qdrant --bootstrap "$scheme://$FIRST.$PEERS:6335" --uri "$uri"

#!/usr/bin/env bash
# Queues a TPU slice, trains on all its hosts, and queues another when this one is taken away.
# Run it where it may stay up, with gcloud logged in: bash FILE
set -u
name={{name}} zone={{zone}}
queued() { gcloud compute tpus queued-resources "$1" "$name" --zone="$zone" --quiet "${@:2}"; }
state() { queued describe --format='value(state.state)' 2> /dev/null || echo ABSENT; }
on_all() { gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"; }
archive=$(mktemp --suffix=.tar.gz)
git -C {{code}} archive --format=tar.gz --output="$archive" HEAD || exit
prepare() {
  gcloud compute tpus tpu-vm scp "$archive" "$name:gpt_jax.tar.gz" --zone="$zone" --worker=all &&
    on_all {{prepare}}
}
failures=0
while true; do
  case $(state) in
    ABSENT)
      queued create --node-id="$name" --accelerator-type={{accelerators}} \
        --runtime-version={{runtime}} --spot
      ;;
    ACTIVE)
      prepare && on_all {{run}}
      code=$?
      if [ "$code" -eq 0 ]; then
        queued delete --force
        exit 0
      elif [ "$code" -ne {{stopped}} ] && [ "$(state)" = ACTIVE ]; then # nobody took the slice away
        failures=$((failures + 1))
        if [ "$code" -eq {{bad_arguments}} ] || [ "$failures" -gt {{retries}} ]; then
          echo "error: $name ended with exit code $code; the slice is kept" >&2
          echo "fix: see its output above, then: bash $0" >&2
          exit "$code"
        fi
      fi
      ;;
    FAILED | SUSPENDED) queued delete --force ;;
  esac
  sleep {{pause}}
done

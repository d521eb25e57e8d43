#!/usr/bin/env bash
# Queues a TPU slice, trains on all its hosts, and queues another when this one is taken away.
# Run it where it may stay up, with gcloud logged in: bash FILE
set -u
name={{name}} zone={{zone}}
queued() { gcloud compute tpus queued-resources "$1" "$name" --zone="$zone" --quiet "${@:2}"; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
state() { # UNKNOWN: gcloud cannot say, as without a network
  if queued describe --format='value(state.state)' 2> "$scratch/errors"; then
    return
  elif grep -q NOT_FOUND "$scratch/errors"; then
    echo ABSENT
  else
    cat "$scratch/errors" >&2
    echo UNKNOWN
  fi
}
on_all() { gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"; }
archive=$scratch/gpt_jax.tar.gz
git -C {{code|sh}} archive --format=tar.gz --output="$archive" HEAD || exit
prepare() {
  gcloud compute tpus tpu-vm scp "$archive" "$name:gpt_jax.tar.gz" --zone="$zone" --worker=all &&
    on_all {{prepare|sh}}
}
failures=0
failed() { # CODE WHAT: ends this if another try would not help, or were one too many
  failures=$((failures + 1))
  if [ "$1" -eq {{bad_arguments}} ] || [ "$failures" -gt {{retries}} ]; then
    echo "error: $name $2 (exit code $1)" >&2
    echo "fix: see the output above, then: bash $0" >&2
    exit "$1"
  fi
}
if [ "$(state)" = UNKNOWN ]; then
  echo "error: gcloud does not say whether $name is in $zone" >&2
  echo "fix: see its words above, then: bash $0" >&2
  exit 1
fi
while true; do
  case $(state) in
    ABSENT)
      queued create --node-id="$name" --accelerator-type={{accelerators}} \
        --runtime-version={{runtime}} --spot || failed "$?" 'could not be queued'
      ;;
    ACTIVE)
      prepare && on_all {{run|sh}}
      code=$?
      if [ "$code" -eq 0 ]; then
        queued delete --force
        exit 0
      elif [ "$code" -ne {{stopped}} ] && [ "$(state)" = ACTIVE ]; then # nobody took the slice away
        failed "$code" 'ended by itself; the slice is kept'
      fi
      ;;
    FAILED)
      queued describe >&2 # says why
      failed 1 'could not be made'
      queued delete --force
      ;;
    SUSPENDED) queued delete --force ;;
  esac
  sleep {{pause}}
done

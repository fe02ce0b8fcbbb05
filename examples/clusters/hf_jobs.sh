#!/bin/bash
# A study on one machine with eight cards, a unit on each at a time:
#     ./hf_jobs.sh IMAGE ORG/BUCKET    (study.yaml lies in ./study, and IMAGE has rankwise[ray] in it)
# The study is on the machine's own disk. It comes from the bucket, and goes back when the run ends.
set -euo pipefail

hf jobs run --detach --flavor h200x8 --timeout 12h --secrets HF_TOKEN \
    --volume ./study:/in:ro --volume "hf://buckets/$2:/kept" \
    "$1" bash -c '
        mkdir -p /kept/mine && cp -r /kept/mine /tmp/mine || exit 1
        rankwise run /in/study.yaml --study-dir /tmp/mine --gpus all
        code=$?
        cp -r /tmp/mine/. /kept/mine && exit $code'

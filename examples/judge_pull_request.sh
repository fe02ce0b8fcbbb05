#!/usr/bin/env bash
# Judges scores or an adapter in continuous integration: report in rankwise-report.md, and an exit code.
#
#   SCORES=scores.csv bash judge_pull_request.sh
#   CONTRACT=contract.yaml BASE=model ADAPTER=adapter bash judge_pull_request.sh
#
# A verdict of scores ends with 0 whatever it is, for a rank is no test; a contract that is not kept ends
# with 1, and one that cannot be told with 3. OPTIONS are further options of the command.
set -uo pipefail
report=rankwise-report.md
if [ -n "${CONTRACT:-}" ] && { [ -z "${BASE:-}" ] || [ -z "${ADAPTER:-}" ]; }; then
    echo "A contract needs BASE and ADAPTER." | tee "$report" >&2
    exit 2
fi
if [ -z "${CONTRACT:-}" ] && [ -z "${SCORES:-}" ]; then
    echo "Give SCORES, or CONTRACT with BASE and ADAPTER." | tee "$report" >&2
    exit 2
fi
if [ -n "${CONTRACT:-}" ]; then
    rm -rf rankwise-check
    # shellcheck disable=SC2086  # several options
    rankwise check "$BASE" "$ADAPTER" --contract "$CONTRACT" --output rankwise-check ${OPTIONS:-} 2> rankwise-errors.txt
    code=$?
    cp rankwise-check/report.md "$report" 2> /dev/null || cp rankwise-errors.txt "$report"
else
    # shellcheck disable=SC2086  # several files, and several options
    said=$(rankwise verdict $SCORES ${OPTIONS:-} 2> rankwise-errors.txt)
    code=$?
    { echo '~~~~~~text'; echo "$said"; cat rankwise-errors.txt; echo '~~~~~~'; } | head -c 60000 > "$report"
fi
cat rankwise-errors.txt >&2
cat "$report"
[ -z "${GITHUB_STEP_SUMMARY:-}" ] || cat "$report" >> "$GITHUB_STEP_SUMMARY"
exit "$code"

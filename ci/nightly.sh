#!/usr/bin/env bash
# One qualification, as a pipeline or cron runs it:
#
#     RELEASE=debian:trixie BASELINE=debian:bookworm ARCH=arm64 ci/nightly.sh [MORE ARGUMENTS OF xentests qualify]
#
# The environment says what is asked, so that no CI system puts other people's text into a command line:
#
#     RELEASE    what is qualified                   BASELINE   what it is held against; default: nothing
#     ARCH       one or more, by spaces; both        PROFILE    smoke, nightly (default) or release
#     SUITES     by spaces; all of the profile       LIMIT      how long a qualification may take: 150m
#     ARTIFACTS  where all of it goes: artifacts     LOG_DIR    write a log there, and print only what is not green
#     MAX_CACHE  what is left of the cache: 20G
#
# A baseline that the history has not seen for a month, or never, is qualified first; its own answer decides nothing.
#
# Ends with the exit code of `xentests qualify`: 0 may ship, 1 must not ship, 2 wrong call, 3 not decided. A code alone
# is not an answer: without a qualification.json, and after whatever else may happen (no network, the limit, a crash,
# a signal), the end is 3. Neither does a broken lab become a verdict on Xen, nor silence a green night.
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")/.." || exit 3

readonly MEANING=("may ship" "must not ship" "wrong call" "not decided")
readonly PREPARE_S=1800 KILL_S=300 UNKNOWN=10
# What a release, an architecture or a profile is written with: nothing that is an option or means something to a shell.
readonly WORD='^[[:alnum:]][[:alnum:].,:=@/_+~-]*$'
artifacts=${ARTIFACTS:-artifacts} limit=${LIMIT:-150m} log=

# finish CODE [WHY]: the last line of the log, and of the mail or the summary page where there is one.
finish() {
    local line
    line="${RELEASE:-no release}${ARCH:+ on $ARCH}: ${MEANING[$1]} (exit $1)${2:+: $2}"
    printf 'nightly: %s\n' "$line"
    [ -z "${GITHUB_STEP_SUMMARY:-}" ] || printf '%s\n' "$line" >>"$GITHUB_STEP_SUMMARY"
    if [ -n "$log" ] && [ "$1" -ne 0 ]; then
        printf '%s\nlog: %s; its end:\n\n' "$line" "$log" >&3
        tail -n 40 "$log" >&3
    fi
    rm -f "${marker:-}"
    exit "$1"
}

if [ -n "${LOG_DIR:-}" ]; then
    mkdir -p "$LOG_DIR" && log=$(mktemp "$LOG_DIR/$(date +%Y%m%d-%H%M%S)-XXXX.log") || exit 3
    exec 3>&1 >"$log" 2>&1
fi

# qualify ARGUMENTS...: within the limit. An interrupted one collects its evidence and can be resumed; the limit of a
# pipeline would take both.
qualify() {
    timeout --signal=INT --kill-after="$KILL_S" "$limit" \
        .venv/bin/tox run -q -e qualify -- "$@" "${arguments[@]}" </dev/null
}

# Whether the history has seen the baseline lately: 0 yes, UNKNOWN no.
is_baseline_known() {
    .tox/qualify/bin/python - "$UNKNOWN" "$BASELINE" "${arches[@]}" <<'PYTHON'
import sys, time
from xentests.release.spec import parse_release
from xentests.report.history import archive, database

unknown, name, *arches = sys.argv[1:]
name, month_ago = str(parse_release(name)), time.time() - 30 * 86400
with database.opened(database.default_url()) as engine:
    seen = [archive.executions(engine, name, arches=[arch] if arch else (), since=month_ago) for arch in arches or [""]]
sys.exit(0 if all(seen) else int(unknown))
PYTHON
}

read -ra arches <<<"${ARCH:-}"
read -ra suites <<<"${SUITES:-}"
for word in "${RELEASE:-}" "${PROFILE:-nightly}" ${BASELINE:+"$BASELINE"} "${arches[@]}" "${suites[@]}"; do
    [[ $word =~ $WORD ]] || finish 2 "'${word//[^[:print:]]/?}' is no release, architecture, suite or profile"
done
arguments=(--profile "${PROFILE:-nightly}")
for arch in "${arches[@]}"; do arguments+=(--arch "$arch"); done
for suite in "${suites[@]}"; do arguments+=(--suite "$suite"); done
arguments+=("$@")
asked=("$RELEASE" --artifacts "$artifacts" ${BASELINE:+--against "$BASELINE"})

# Apart from the run: a package that cannot be fetched ends bootstrap.sh with 1, which is no verdict.
timeout "$PREPARE_S" ./bootstrap.sh qualify -- "${asked[@]}" "${arguments[@]}" --help </dev/null >/dev/null
case $? in
0) ;;
2) finish 2 "bootstrap.sh or xentests qualify refused its arguments" ;;
*) finish 3 "the environment could not be made: see the messages of bootstrap.sh" ;;
esac

mkdir -p "$artifacts" || finish 3 "$artifacts cannot be made"
marker=$(mktemp) || finish 3 "no room for temporary files"
touch -d '-1 second' "$marker" # file systems count time in ticks
case ${BASELINE:-} in
'' | qualify-*) ;; # nothing, or one qualification, which is there or not
*)
    is_baseline_known
    known=$?
    if [ $known -eq $UNKNOWN ]; then
        qualify "$BASELINE" --artifacts "$artifacts/baseline"
        [ $? -ne 2 ] || finish 2 "the baseline $BASELINE was refused, see above"
        is_baseline_known
        known=$?
    fi
    [ $known -eq 0 ] || finish 3 "the baseline $BASELINE could not be qualified, or the history not be read, see above"
    ;;
esac

qualify "${asked[@]}"
code=$?
answer=$(find "$artifacts" -mindepth 2 -maxdepth 2 -path '*/qualify-*/qualification.json' -newer "$marker" |
    sort | tail -n 1)
.tox/qualify/bin/xentests gc --max-size "${MAX_CACHE:-20G}" || printf 'nightly: the cache could not be trimmed\n'

case $code in
2) finish 2 "see above" ;;
124 | 137) finish 3 "the limit of $limit was reached; 'xentests qualify --resume latest' goes on" ;;
0 | 1 | 3) [ -n "$answer" ] || finish 3 "it ended with $code and wrote no answer" ;;
*) finish 3 "it ended with $code" ;;
esac
finish "$code" "${answer%/*}/index.html"

# shellcheck shell=bash
# What every script shares: how it speaks. Sourced, never run.

say() { printf '\033[2m%s\033[0m\n' "$*"; }           # progress
done_() { printf '\033[1m%s\033[0m\n' "$*"; }         # the closing line
warn() { printf '\033[33m%s\033[0m\n' "$*" >&2; }
fail() {                                              # one sentence, then out
    printf '\033[31m%s\033[0m\n' "$*" >&2
    exit 1
}
if [ ! -t 1 ] || [ ! -t 2 ] || [ -n "${NO_COLOR:-}" ]; then # no colour codes in files and pipes
    say() { printf '%s\n' "$*"; }
    done_() { printf '%s\n' "$*"; }
    warn() { printf '%s\n' "$*" >&2; }
    fail() {
        printf '%s\n' "$*" >&2
        exit 1
    }
fi

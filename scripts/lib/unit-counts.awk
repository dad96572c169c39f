# What `cargo test` printed, in a line; with -v reasons=1 each reason for which tests were ignored, and how many.
/^test .* \.\.\. ignored/ {
    reason = $0
    if (!sub(/^.* \.\.\. ignored, /, "", reason)) reason = "no reason is given"
    ignored[reason]++
}
/^test result:/ { passed += $4; failed += $6; left += $8 }
END {
    if (!reasons) print passed + 0 " passed, " failed + 0 " failed, " left + 0 " ignored"
    else for (reason in ignored) print "ignored " ignored[reason] ": " reason
}

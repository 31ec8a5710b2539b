"""Would a configuration's run be constrained? `pact-plugin check`, for the files that `swift sft` takes."""

"""Would a configuration's run be constrained? `pact-plugin check`, and what the plugin refuses by the same rules."""

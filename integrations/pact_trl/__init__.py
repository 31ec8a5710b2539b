"""PACT for TRL: `pact.attach(SFTTrainer(...), config)`."""

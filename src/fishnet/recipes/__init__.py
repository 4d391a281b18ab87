"""Built-in recipes: YAML files whose header says source, command, cost and expected score."""

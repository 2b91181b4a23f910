"""Generated from proto/potluck/v1 by generate.sh."""

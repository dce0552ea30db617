"""The race: contenders as groups of processes, taking turns case by case and round by round."""

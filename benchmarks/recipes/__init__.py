"""The papers' whole methods: criterion, schedule, recovery, with their published recipes."""

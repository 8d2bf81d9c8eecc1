"""`bench rank`: where a loss stands among the measured losses of a suite, and how sure that is. Nothing heavy here."""

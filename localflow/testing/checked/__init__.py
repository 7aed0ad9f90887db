"""The contract suites as `localflow plugins check` runs them: for whatever a table or plugin of some name makes."""

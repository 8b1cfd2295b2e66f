"""The outside: run spec, study, executors, run folder, report, command line."""

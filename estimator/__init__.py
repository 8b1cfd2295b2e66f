"""What a serving strategy does in time: operators, roofline, step cost, event simulation, goodput, money."""

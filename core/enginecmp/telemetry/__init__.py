"""What could spoil a measurement: other work on the machine, and how idle it is."""

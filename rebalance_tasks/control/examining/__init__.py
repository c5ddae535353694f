"""What the doctor looks at; `control.doctor` is the door."""

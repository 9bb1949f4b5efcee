"""PEFT methods that PEFT lacks, registered so that all of PEFT works with them."""

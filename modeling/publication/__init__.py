"""What others see of a member, judge or base: its card, and the folder that goes to the Hub."""

"""What a terminal shows: tables, in other formats too, and plots made of letters."""

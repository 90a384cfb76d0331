"""Cases from other systems' logs, and what each of their passages earned."""

"""What operators book: payments, corrections, payouts, and the balance of it all."""

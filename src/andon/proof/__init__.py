"""What an inspection can prove: agreement and gauge R&R, acceptance, plans and samples."""

"""What an inspection can prove: plans of samples, samples of a running line, acceptance by agreed rates."""

"""Line protocols: thin views of `Station` for PLCs, brokers and other programs."""

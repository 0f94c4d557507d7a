"""Line protocols: interfaces of `Station` for PLCs, brokers and other programs."""

"""The station: from trigger to verdict."""

"""Teaching a product at a station: pictures, check, recipe, training, result, release."""

"""What joins the loss: one file per way of holding on."""

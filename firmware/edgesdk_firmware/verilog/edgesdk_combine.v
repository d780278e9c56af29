// One step of a sum or of a maximum: `x` alone when it is the first.
module edgesdk_combine #(
    parameter integer WIDTH = 8,
    parameter integer SIGNED = 1,
    parameter integer MAX = 0,
    parameter integer OUT = 12
) (
    input  wire             first,
    input  wire [WIDTH-1:0] x,
    input  wire [OUT-1:0]   held,
    output wire [OUT-1:0]   next
);
    wire [OUT-1:0] wide;
    generate
        if (OUT == WIDTH) begin : same
            assign wide = x;
        end else begin : extended
            assign wide = {{(OUT - WIDTH){SIGNED != 0 ? x[WIDTH-1] : 1'b0}}, x};
        end
        if (MAX == 0) begin : sum
            assign next = (first ? {OUT{1'b0}} : held) + wide;
        end else if (SIGNED != 0) begin : signed_max
            assign next = first || $signed(wide) > $signed(held) ? wide : held;
        end else begin : unsigned_max
            assign next = first || wide > held ? wide : held;
        end
    endgenerate
endmodule

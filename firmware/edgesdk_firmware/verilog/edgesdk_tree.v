// COUNT signed numbers, added or (MAX = 1) the greatest of them taken, in pairs, with a register behind each level.
// WIDTH bits each, the first least significant. OUT = WIDTH + LEVELS when adding, WIDTH for MAX; 2**LEVELS >= COUNT.
module edgesdk_tree #(
    parameter integer COUNT = 2,
    parameter integer LEVELS = 1,
    parameter integer WIDTH = 8,
    parameter integer MAX = 0,
    parameter integer OUT = 9
) (
    input  wire                          clk,
    input  wire                          en,
    input  wire        [COUNT*WIDTH-1:0] x,
    output wire signed [OUT-1:0]         y
);
    localparam HALF = (COUNT + 1) / 2;
    localparam NEXT = MAX != 0 ? WIDTH : WIDTH + 1;

    generate
        if (LEVELS == 0) begin : leaf
            assign y = x;
            wire unused = &{1'b0, clk, en};
        end else begin : branch
            reg [HALF*NEXT-1:0] pairs;
            genvar i;
            for (i = 0; i < HALF; i = i + 1) begin : pair
                wire signed [WIDTH-1:0] left = x[2*i*WIDTH+:WIDTH];
                if (2 * i + 1 < COUNT) begin : both
                    wire signed [WIDTH-1:0] right = x[(2*i+1)*WIDTH+:WIDTH];
                    if (MAX != 0) begin : greatest
                        always @(posedge clk) if (en) pairs[i*NEXT+:NEXT] <= left > right ? left : right;
                    end else begin : sum
                        wire signed [NEXT-1:0] total = {left[WIDTH-1], left} + {right[WIDTH-1], right};
                        always @(posedge clk) if (en) pairs[i*NEXT+:NEXT] <= total;
                    end
                end else if (MAX != 0) begin : alone
                    always @(posedge clk) if (en) pairs[i*NEXT+:NEXT] <= left;
                end else begin : extended
                    always @(posedge clk) if (en) pairs[i*NEXT+:NEXT] <= {left[WIDTH-1], left};
                end
            end
            edgesdk_tree #(
                .COUNT(HALF), .LEVELS(LEVELS - 1), .WIDTH(NEXT), .MAX(MAX), .OUT(OUT)
            ) rest (.clk(clk), .en(en), .x(pairs), .y(y));
        end
    endgenerate
endmodule
